"""One page of HTML from what commands have left in folders."""
