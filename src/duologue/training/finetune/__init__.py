"""Training that changes the base: the papers' `full` and `lora` recipes, on states and responses."""
