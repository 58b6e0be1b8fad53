"""Release: the gate, the model card printed from manifests, and the folder that plain transformers loads."""
