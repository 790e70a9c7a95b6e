"""What decoders may do to a run: end it (`trial`), or complain (`complaints`) of damage that they hide (`damaged`)."""
