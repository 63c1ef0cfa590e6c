"""Batch norm of d-component numbers as pure tensor functions; a number's components lie in blocks of C / d channels."""
