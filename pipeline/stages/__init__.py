"""The stages: where a stream, a model, a method and an engine meet. One file, one `run(job) -> Result`, each."""
