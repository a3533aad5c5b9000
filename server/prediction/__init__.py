"""Prediction: one question from request to answer, and the service that owns all parts."""
