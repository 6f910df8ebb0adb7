"""Closed-loop evaluation: episodes, records, statistics, report, videos."""
