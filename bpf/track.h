/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What sockops does: joins the caller's record to its tuple before the SYN leaves, writes and spends tickets,
 * keeps the table of what the database listens on, and reports whoever got to the database without us.
 * It cannot refuse: a failure here is counted, and the connection arrives without a name.
 */
#ifndef VECWARD_TRACK_H
#define VECWARD_TRACK_H

static __always_inline void map_v4(__u32 out[4], __u32 address)
{
	out[0] = 0;
	out[1] = 0;
	out[2] = bpf_htonl(0xffff);
	out[3] = address;
}

static __always_inline struct guard *guard_at(__u64 netns, const __u32 addr[4], __u16 port)
{
	struct watch_key key = {.netns = netns, .port = port};
	struct guard *guard;

	__builtin_memcpy(key.addr, addr, sizeof(key.addr));
	guard = bpf_map_lookup_elem(&watch, &key);
	if (guard)
		return guard;
	__builtin_memset(key.addr, 0, sizeof(key.addr));
	return bpf_map_lookup_elem(&watch, &key);
}

struct ends {
	__u32 local[4];
	__u32 remote[4];
	__u16 local_port;
	__u16 remote_port;
};

static __always_inline void ends_of(volatile struct bpf_sock_ops *ctx, struct ends *ends)
{
	__u32 family = ctx->family, local4 = ctx->local_ip4, remote4 = ctx->remote_ip4;

	ends->local[0] = ctx->local_ip6[0];
	ends->local[1] = ctx->local_ip6[1];
	ends->local[2] = ctx->local_ip6[2];
	ends->local[3] = ctx->local_ip6[3];
	ends->remote[0] = ctx->remote_ip6[0];
	ends->remote[1] = ctx->remote_ip6[1];
	ends->remote[2] = ctx->remote_ip6[2];
	ends->remote[3] = ctx->remote_ip6[3];
	ends->local_port = ctx->local_port;
	ends->remote_port = bpf_ntohl(ctx->remote_port);
	if (family == AF_INET) {
		map_v4(ends->local, local4);
		map_v4(ends->remote, remote4);
	}
}

/* sockops may call bpf_get_netns_cookie since 5.15 only: what it returns is read. Before 5.12 that is 0 where nobody
 * asked yet, which no guarded namespace is: attaching asks. */
static __always_inline __u64 netns_of(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct sock *full;
	struct net *net;
	struct net___counter *counter;

	if (!sk)
		return 0;
	full = (void *)bpf_skc_to_tcp_sock(sk); /* a pointer the verifier lets us look through */
	if (!full)
		return 0;
	net = BPF_CORE_READ(full, __sk_common.skc_net.net);
	counter = (void *)net;
	if (bpf_core_field_exists(counter->net_cookie.counter))
		return BPF_CORE_READ(counter, net_cookie.counter);
	if (bpf_core_field_exists(net->net_cookie))
		return BPF_CORE_READ(net, net_cookie);
	return bpf_get_netns_cookie(ctx);
}

static __always_inline void forget(struct bpf_sock_ops *ctx, struct ends *ends)
{
	struct flow flow = {};
	struct identity *who;
	__u32 bucket;

	flow.netns = netns_of(ctx);
	__builtin_memcpy(flow.saddr, ends->local, 16);
	__builtin_memcpy(flow.daddr, ends->remote, 16);
	flow.sport = ends->local_port;
	flow.dport = ends->remote_port;
	who = bpf_map_lookup_elem(&identities, &flow);
	if (!who)
		return;
	bucket = who->bucket;
	if (!bpf_map_delete_elem(&identities, &flow))
		discharge(bucket);
}

static __always_inline void on_connect(struct bpf_sock_ops *ctx)
{
	struct ends ends;
	struct connecting *kept;
	struct ticket ticket = {};
	struct bpf_sock *sk = ctx->sk;
	struct identity *before;
	__u32 inum;

	ends_of(ctx, &ends);
	if (!bpf_map_lookup_elem(&ports, &ends.remote_port) || !sk)
		return;
	kept = bpf_sk_storage_get(&connecting, sk, 0, 0);
	if (!kept || !kept->who.cookie) {
		forget(ctx, &ends); /* not the name of whoever had this tuple before */
		count(STAT_IDENTITY_MISSING); /* the connect hook did not see it: arrives as unattributed */
		return;
	}
	__builtin_memset(&kept->flow, 0, sizeof(kept->flow));
	kept->flow.netns = kept->who.netns;
	__builtin_memcpy(kept->flow.saddr, ends.local, 16);
	__builtin_memcpy(kept->flow.daddr, ends.remote, 16);
	kept->flow.sport = ends.local_port;
	kept->flow.dport = ends.remote_port;
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);

	if (kept->who.flags & IDENTITY_PROXY) {
		ticket.cookie = kept->who.cookie;
		ticket.written = kept->who.connected;
		if (bpf_map_update_elem(&tickets, &kept->flow, &ticket, BPF_ANY))
			count(STAT_TICKET_LOST);
		else
			count(STAT_TICKET_WRITTEN);
		/* not charged to a user: lives only until the handshake ends, and stops a loop when the ticket is lost */
		bpf_map_update_elem(&identities, &kept->flow, &kept->who, BPF_ANY);
		return;
	}
	before = bpf_map_lookup_elem(&identities, &kept->flow);
	if (before && !(before->flags & IDENTITY_PROXY))
		discharge(before->bucket); /* the same tuple again, its close was not seen */
	charge(&kept->who);
	if (bpf_map_update_elem(&identities, &kept->flow, &kept->who, BPF_ANY)) {
		discharge(kept->who.bucket);
		count(STAT_IDENTITY_LOST);
		return;
	}
	count(STAT_IDENTITY_WRITTEN);
	inum = kept->who.netns_inum;
	bpf_map_update_elem(&spaces, &kept->who.netns, &inum, BPF_ANY);
	if (!bpf_map_lookup_elem(&namespaces, &kept->who.netns)) {
		struct flow anywhere = kept->flow;

		anywhere.netns = 0;
		bpf_map_update_elem(&elsewhere, &anywhere, &kept->who.netns, BPF_ANY);
	}
}

static __always_inline void on_close(struct bpf_sock_ops *ctx, bool refused)
{
	struct bpf_sock *sk = ctx->sk;
	struct connecting *kept;
	struct identity *who;
	struct ticket *ticket;

	if (!sk)
		return;
	kept = bpf_sk_storage_get(&connecting, sk, 0, 0);
	if (!kept || !kept->flow.dport)
		return;
	ticket = bpf_map_lookup_elem(&tickets, &kept->flow);
	if (ticket && ticket->cookie == kept->who.cookie && !bpf_map_delete_elem(&tickets, &kept->flow))
		count(STAT_TICKET_EXPIRED); /* a ticket that outlives its socket would be a bypass */
	if (!refused && !(kept->who.flags & IDENTITY_PROXY))
		return; /* a client may be gone before it is accepted: its name stays until somebody asks */
	who = bpf_map_lookup_elem(&identities, &kept->flow);
	if (who && who->cookie == kept->who.cookie && !bpf_map_delete_elem(&identities, &kept->flow) &&
	    !(kept->who.flags & IDENTITY_PROXY)) {
		discharge(kept->who.bucket);
		count(STAT_IDENTITY_CLOSED);
	}
}

/* Nobody will ask who it was: the record goes with the event. */
static __always_inline void hand_over(struct event *event, struct flow *flow)
{
	struct flow there = *flow;
	struct identity *who = bpf_map_lookup_elem(&identities, &there);
	__u64 *netns;

	if (!who) {
		there.netns = 0;
		netns = bpf_map_lookup_elem(&elsewhere, &there);
		if (!netns)
			return;
		there.netns = *netns;
		who = bpf_map_lookup_elem(&identities, &there);
		if (!who)
			return;
	}
	event->who = *who;
	event->known = 1;
	if (!bpf_map_delete_elem(&identities, &there) && !(event->who.flags & IDENTITY_PROXY))
		discharge(event->who.bucket);
}

static __always_inline void report(__u32 kind, struct guard *guard, struct flow *flow, __u64 cookie)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event) {
		count(STAT_EVENT_LOST);
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->at = bpf_ktime_get_boot_ns();
	event->cookie = cookie;
	event->kind = kind;
	event->guard = guard->index;
	event->guard_flags = guard->flags;
	event->flow = *flow;
	hand_over(event, flow);
	bpf_ringbuf_submit(event, 0);
}

static __always_inline void on_accept(struct bpf_sock_ops *ctx)
{
	struct ends ends;
	struct flow flow = {};
	struct bpf_sock *sk = ctx->sk;
	__u32 ticketed = MARK_TICKETED, kind = EVENT_BYPASS, *why;
	struct identity *who;
	struct guard *guard;

	ends_of(ctx, &ends);
	if (!bpf_map_lookup_elem(&ports, &ends.local_port) || !sk)
		return;
	flow.netns = netns_of(ctx);
	guard = guard_at(flow.netns, ends.local, ends.local_port);
	if (!guard)
		return;
	__builtin_memcpy(flow.saddr, ends.remote, 16);
	__builtin_memcpy(flow.daddr, ends.local, 16);
	flow.sport = ends.remote_port;
	flow.dport = ends.local_port;
	if (bpf_sk_storage_get(&marks, sk, 0, 0)) { /* inherited from our listener */
		who = bpf_map_lookup_elem(&identities, &flow);
		if (who) /* a reset connection's tuple may be used again before it is accepted: tell them apart */
			who->accepted = bpf_get_socket_cookie(ctx);
		count(STAT_ESTABLISHED_STEERED);
		return;
	}
	if (!bpf_map_delete_elem(&tickets, &flow)) { /* single use; not earlier, for SYN cookies look twice */
		bpf_map_delete_elem(&identities, &flow);
		bpf_sk_storage_get(&marks, sk, &ticketed, BPF_SK_STORAGE_GET_F_CREATE);
		count(STAT_ESTABLISHED_UPSTREAM);
		return;
	}
	why = bpf_map_lookup_elem(&passed, &flow);
	if (why)
		kind = *why; /* let through on purpose by the lookup below */
	bpf_map_delete_elem(&passed, &flow);
	count(kind == EVENT_UNOBSERVED ? STAT_ESTABLISHED_UNOBSERVED :
	      kind == EVENT_OFF	       ? STAT_ESTABLISHED_OFF :
	      kind == EVENT_REMOTE     ? STAT_ESTABLISHED_REMOTE :
					 STAT_ESTABLISHED_BYPASS);
	report(kind, guard, &flow, bpf_get_socket_cookie(ctx));
}

static __always_inline void on_listen(struct bpf_sock_ops *ctx, bool closing)
{
	struct up_key key = {.netns = netns_of(ctx)};
	struct up value = {.cookie = bpf_get_socket_cookie(ctx)}, *known;
	struct place own = {.netns = key.netns};
	struct bpf_sock *sk = ctx->sk;
	struct sock *listener;
	struct ends ends;
	__u64 *ours;
	int lane;

	if (!sk || !bpf_map_lookup_elem(&namespaces, &key.netns))
		return;
	ends_of(ctx, &ends);
	own.port = key.port = ends.local_port;
	__builtin_memcpy(key.addr, ends.local, sizeof(key.addr));
	if (!closing) /* its end must be seen too; also of our own listeners, which are marked later */
		bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	ours = bpf_map_lookup_elem(&own_ports, &own);
	if (closing && ours && *ours == value.cookie)
		bpf_map_delete_elem(&own_ports, &own); /* the port may be anybody's now */
	if (!bpf_map_lookup_elem(&ports, &key.port) || bpf_sk_storage_get(&marks, sk, 0, 0))
		return;
	listener = (void *)bpf_skc_to_tcp_sock(sk); /* a pointer the verifier lets us look through */
	if (listener)
		value.v6only = BPF_CORE_READ_BITFIELD_PROBED(listener, __sk_common.skc_ipv6only);
	for (lane = 0; lane < UP_LANES; lane++) {
		key.lane = lane;
		known = bpf_map_lookup_elem(&up, &key);
		if (closing && known && known->cookie == value.cookie) {
			bpf_map_delete_elem(&up, &key);
			count(STAT_UP_REMOVED);
		} else if (!closing && !known && !bpf_map_update_elem(&up, &key, &value, BPF_NOEXIST)) {
			count(STAT_UP_ADDED);
			return;
		}
	}
	if (!closing)
		count(STAT_UP_LOST); /* refused until user space seeds again */
}

#endif
