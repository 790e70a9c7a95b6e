"""Helper processes without torch: one (`worker`), or several that share jobs (`pool`); `serving` is their side."""
