"""Batch prediction: from a file of questions to a file of answers, without HTTP."""
