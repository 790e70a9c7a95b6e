"""A rehearsal at the size of ImageNet: the section `scale`."""
