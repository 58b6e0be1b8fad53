"""What a program can say of code that a model wrote: its style, and whether it runs and passes a test. Of ours it imports nothing."""
