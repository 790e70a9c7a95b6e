"""The sections of `amcl-fast bench`, each of which makes its rows; `frameworks`, a study with a command of its own."""
