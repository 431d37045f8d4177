"""The verify stage: a separate auditor of what an update left in every slot."""
