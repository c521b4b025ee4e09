"""The reward audit: pays known right and worthless answers, and reports which of them earn a reward."""
