"""Batch norm of d-component numbers as pure tensor functions; `backends` chooses among them.

A number's d components lie in d blocks of C / d channels. Read on from `reference`, which is short and plain.
"""
