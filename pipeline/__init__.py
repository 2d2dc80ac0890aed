"""Machine unlearning of image-to-image models: data, phases, evaluation and report. Never imports `launch`."""

__version__ = "0.1.0"
