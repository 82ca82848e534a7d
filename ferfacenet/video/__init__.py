"""Videos and cameras to tracked faces; needs the ``video`` extra."""
