"""Directories: systems elsewhere that know users and check their passwords."""
