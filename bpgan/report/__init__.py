"""What runs left on disk, for people: the page of a run and the comparison of many."""
