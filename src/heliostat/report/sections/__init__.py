"""The sections of a page, each a function from runs to markup."""
