"""Reports calls as spans, metrics and log lines; and memory that workers share."""
