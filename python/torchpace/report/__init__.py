"""The report: one HTML page and its pictures from a results.json.

Nothing is measured or estimated here: every number comes from the file, as it is or divided by
another of the file. The statistics are C++ (include/torchpace/statistics.hpp).
"""
