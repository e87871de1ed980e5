"""From numbers to decisions: the plan, its verification, the report, the commands."""
