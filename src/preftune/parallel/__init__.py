"""Several processes: who they are, what they say to each other, and how a model's weights are spread over them."""
