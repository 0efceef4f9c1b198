"""Who may start a conversation, when and where: tenants, quotas, queue, placement. Pure; time is injected."""
