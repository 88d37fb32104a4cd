"""The commands of `lmjax`: flags, and what is printed."""
