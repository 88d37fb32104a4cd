"""Objectives: for each a host half (documents -> features) and a device half (outputs -> loss sums)."""
