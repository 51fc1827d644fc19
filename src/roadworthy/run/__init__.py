"""Running a model: the runner protocol, the table of targets, and one file per runtime."""
