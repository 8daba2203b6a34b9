"""Checkpoints of others: reading and writing their files, and the tables that carry weights over, both ways."""
