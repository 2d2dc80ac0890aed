"""What is done beside the chain: index a source, set tombstones, foretell a batch, erase it, compare methods."""
