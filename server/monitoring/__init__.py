"""Monitoring: metrics, logs, traces, and the outcomes that clients report."""
