"""RLDS datasets in TFDS's layout, written and read without TensorFlow."""
