"""Shards: sources, index, partition, stream, images, tasks."""
