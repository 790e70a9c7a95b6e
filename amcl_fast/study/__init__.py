"""The paper's studies: many trainings, one after the other, on one page with their raw results beside it."""
