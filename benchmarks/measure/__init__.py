"""The sections of `amcl-fast bench`: each makes the rows of its own."""
