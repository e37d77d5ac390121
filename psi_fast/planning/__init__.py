"""What a run would take: bytes, operations, memory, seconds and cost of each stage, for any number of images and workers."""
