"""The evaluate room: what a tuned model won and what it lost, with the uncertainty of each number."""
