"""What an architecture costs to train: speed, operations, memory, and what a step spends its time on."""
