"""Teachers of a policy: the model of a recipe's ``[teacher]``, in this process or on a server."""
