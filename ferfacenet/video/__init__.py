"""Videos and cameras to tracked faces; needs what the ``video`` extra has."""
