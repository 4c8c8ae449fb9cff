"""Several processes that train one policy, and policies that follow another one's weights."""
