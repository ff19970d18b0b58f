// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Steering and attribution: who connects to a guarded port is written down before the SYN leaves, and every
 * SYN that reaches a guarded port goes to a proxy worker unless it carries a one-use ticket.
 *
 * Bias: a guard that enforces fails closed (EPERM, drop); one that observes never breaks a client.
 * Only connect4/6 can refuse a connect; what sockops returns is ignored by the kernel. Context words are read
 * through volatile, because the verifier rejects the context arithmetic clang makes of a branch per family.
 */
#include "kernel.h"
#include "steer.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "maps.h"
#include "who.h"
#include "track.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const volatile __u64 guarded_netns = 0; /* of this sk_lookup instance: the helper is not available there */

#define ALLOW 1
#define REFUSE 0 /* connect4/6: EPERM */

static __always_inline int counted(__u32 what, int verdict)
{
	count(what);
	return verdict;
}

/* ---- cgroup/connect4|6: the only place with the right task, and the only one that can refuse ---- */

static __always_inline int refuse_unless_observed(__u32 flags, __u32 why)
{
	if (flags & GUARD_ENFORCE)
		return counted(why, REFUSE);                 /* nobody is judged without a name */
	return counted(STAT_CONNECT_UNRECORDED, ALLOW);      /* observing: arrives as unattributed */
}

static __always_inline int remember(struct bpf_sock_addr *ctx)
{
	__u16 port = bpf_ntohs((__u16)ctx->user_port);
	__u64 cgroup = bpf_get_current_cgroup_id();
	__u32 uid = (__u32)bpf_get_current_uid_gid();
	struct connecting *kept;
	__u32 *flags;
	bool proxy;

	if (ctx->type != SOCK_STREAM)
		return ALLOW; /* steering is about TCP; MPTCP is a stream too and connects by its subflow */
	flags = bpf_map_lookup_elem(&ports, &port);
	if (!flags)
		return ALLOW; /* not guarded. By port alone: 0.0.0.0, :: and names resolve later than this hook */
	if (!ctx->sk)
		return refuse_unless_observed(*flags, STAT_CONNECT_REFUSED_MEMORY);
	proxy = bpf_map_lookup_elem(&exempt, &cgroup) != 0;
	if (!proxy && over_cap(uid)) {
		bpf_sk_storage_delete(&connecting, ctx->sk); /* a second connect must not keep the first one's name */
		return refuse_unless_observed(*flags, STAT_CONNECT_REFUSED_CAP);
	}
	kept = bpf_sk_storage_get(&connecting, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!kept)
		return refuse_unless_observed(*flags, STAT_CONNECT_REFUSED_MEMORY);
	describe(&kept->who);
	kept->who.cookie = bpf_get_socket_cookie(ctx);
	kept->who.netns = bpf_get_netns_cookie(ctx);
	if (proxy)
		kept->who.flags |= IDENTITY_PROXY;
	return counted(proxy ? STAT_CONNECT_PROXY : STAT_CONNECT_RECORDED, ALLOW);
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return remember(ctx);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return remember(ctx);
}

/* ---- sockops: nothing it returns is heeded ---- */

SEC("sockops")
int track(struct bpf_sock_ops *ctx)
{
	__u32 op = ctx->op;

	if (op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		on_connect(ctx);
	else if (op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		on_accept(ctx);
	else if (op == BPF_SOCK_OPS_TCP_LISTEN_CB)
		on_listen(ctx, false);
	else if (op == BPF_SOCK_OPS_STATE_CB && ctx->args[1] == TCP_CLOSE) {
		if (ctx->args[0] == TCP_LISTEN)
			on_listen(ctx, true);
		else
			on_close(ctx, ctx->args[0] == TCP_SYN_SENT);
	}
	return 1;
}

/* ---- sk_lookup: every SYN to this namespace that no connected socket takes ---- */

static __always_inline bool is_up(__u64 netns, const __u32 addr[4], __u16 port)
{
	struct up_key key = {.netns = netns, .port = port};
	bool v4 = !addr[0] && !addr[1] && addr[2] == bpf_htonl(0xffff);
	struct up *known;
	int lane;

	for (lane = 0; lane < UP_LANES; lane++) {
		key.lane = lane;
		__builtin_memcpy(key.addr, addr, sizeof(key.addr));
		if (bpf_map_lookup_elem(&up, &key))
			return true; /* on this very address */
		map_v4(key.addr, 0);
		if (v4 && bpf_map_lookup_elem(&up, &key))
			return true; /* on 0.0.0.0 */
		__builtin_memset(key.addr, 0, sizeof(key.addr));
		known = bpf_map_lookup_elem(&up, &key);
		if (known && !(v4 && known->v6only))
			return true; /* on ::, which serves IPv4 too unless it says otherwise */
	}
	return false;
}

/* Local without an identity is judged as unattributed; remote may be passed in observe. A container of this
 * host is not remote: its connect was seen in another namespace. The agent proves whose it was. */
static __always_inline bool is_remote(struct flow *flow)
{
	struct place place = {.netns = flow->netns};
	struct flow anywhere = *flow;

	if (!flow->saddr[0] && !flow->saddr[1] && flow->saddr[2] == bpf_htonl(0xffff) &&
	    (flow->saddr[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000))
		return false; /* 127/8 */
	if (!flow->saddr[0] && !flow->saddr[1] && !flow->saddr[2] && flow->saddr[3] == bpf_htonl(1))
		return false; /* ::1 */
	__builtin_memcpy(place.addr, flow->saddr, sizeof(place.addr));
	if (bpf_map_lookup_elem(&local_addresses, &place))
		return false;
	anywhere.netns = 0;
	return !bpf_map_lookup_elem(&elsewhere, &anywhere);
}

static __always_inline int pass(struct flow *flow, __u32 kind, __u32 stat)
{
	bpf_map_update_elem(&passed, flow, &kind, BPF_ANY); /* so that its handshake is not called a bypass */
	return counted(stat, SK_PASS);
}

static __always_inline bool give(struct bpf_sk_lookup *ctx, void *sockets, __u32 slot)
{
	struct bpf_sock *sk = bpf_map_lookup_elem(sockets, &slot);
	long failed;

	if (!sk)
		return false; /* its worker is gone */
	failed = bpf_sk_assign(ctx, sk, BPF_SK_LOOKUP_F_REPLACE | BPF_SK_LOOKUP_F_NO_REUSEPORT);
	bpf_sk_release(sk);
	if (failed)
		count(STAT_SLOT_FAILED);
	return !failed;
}

/* The same slot for the same flow: with SYN cookies the lookup runs again for the last ACK. */
static __always_inline __u32 mix(struct flow *flow)
{
	__u32 hash = flow->saddr[3] ^ flow->saddr[1] ^ ((__u32)flow->sport << 8) ^ flow->daddr[3];

	hash = (hash ^ (hash >> 16)) * 0x45d9f3b;
	hash = (hash ^ (hash >> 16)) * 0x45d9f3b;
	return hash ^ (hash >> 16);
}

static __always_inline void flow_of(volatile struct bpf_sk_lookup *ctx, struct flow *flow)
{
	__u32 family = ctx->family, local4 = ctx->local_ip4, remote4 = ctx->remote_ip4;

	flow->netns = guarded_netns;
	flow->saddr[0] = ctx->remote_ip6[0];
	flow->saddr[1] = ctx->remote_ip6[1];
	flow->saddr[2] = ctx->remote_ip6[2];
	flow->saddr[3] = ctx->remote_ip6[3];
	flow->daddr[0] = ctx->local_ip6[0];
	flow->daddr[1] = ctx->local_ip6[1];
	flow->daddr[2] = ctx->local_ip6[2];
	flow->daddr[3] = ctx->local_ip6[3];
	flow->sport = bpf_ntohs(ctx->remote_port);
	flow->dport = ctx->local_port;
	if (family == AF_INET) {
		map_v4(flow->saddr, remote4);
		map_v4(flow->daddr, local4);
	}
}

SEC("sk_lookup")
int steer(struct bpf_sk_lookup *ctx)
{
	struct flow flow = {};
	struct place own = {.netns = guarded_netns};
	struct identity *who;
	struct guard *guard;
	__u32 first, workers, base, i;

	flow_of(ctx, &flow);
	own.port = flow.dport;
	if (ctx->protocol == IPPROTO_TCP && bpf_map_lookup_elem(&own_ports, &own))
		return counted(STAT_LOOKUP_OWN_PORT, SK_DROP); /* only steered connections may reach a worker */
	guard = guard_at(guarded_netns, flow.daddr, flow.dport);
	if (!guard)
		return SK_PASS; /* none of our business */
	if (ctx->protocol != IPPROTO_TCP) {
		if (!(guard->flags & GUARD_ENFORCE) || guard->flags & GUARD_OFF)
			return SK_PASS; /* UDP is not read; observing must not break it */
		return counted(STAT_LOOKUP_NOT_TCP, SK_DROP); /* QUIC to the database would go around the proxy */
	}
	if (bpf_map_lookup_elem(&tickets, &flow))
		return counted(STAT_LOOKUP_TICKET, SK_PASS); /* the proxy's own way to the database */
	who = bpf_map_lookup_elem(&identities, &flow);
	if (who && who->flags & IDENTITY_PROXY)
		return counted(STAT_LOOKUP_LOOP, SK_DROP); /* steering the proxy to itself never ends */
	if (guard->flags & GUARD_OFF)
		return pass(&flow, EVENT_OFF, STAT_LOOKUP_OFF); /* a person opened it, for a time */
	if (!is_up(guarded_netns, flow.daddr, flow.dport)) {
		if (guard->flags & GUARD_PASS_ON_FAILURE) /* the kernel refuses it itself, and is right if we are wrong */
			return pass(&flow, EVENT_UNOBSERVED, STAT_LOOKUP_NOT_UP);
		return counted(STAT_LOOKUP_NOT_UP, SK_DROP); /* no database there: refused as without us */
	}
	if (guard->flags & GUARD_REMOTE_PASS && !who && is_remote(&flow))
		return pass(&flow, EVENT_REMOTE, STAT_LOOKUP_REMOTE); /* the database goes on seeing its address */
	workers = guard->workers;
	base = guard->index * MAX_WORKERS;
	first = workers ? mix(&flow) % workers : 0;
	for (i = 0; i < MAX_WORKERS; i++) {
		if (i >= workers)
			break;
		if (give(ctx, &slots, base + (first + i) % workers))
			return counted(STAT_LOOKUP_STEERED, SK_PASS); /* a worker that lives */
	}
	if (give(ctx, &reserve, guard->index))
		return counted(STAT_LOOKUP_RESERVE, SK_PASS); /* waits for the next worker */
	if (guard->flags & GUARD_PASS_ON_FAILURE)
		return pass(&flow, EVENT_UNOBSERVED, STAT_LOOKUP_UNOBSERVED); /* observing never breaks a client */
	return counted(STAT_LOOKUP_REFUSED, SK_DROP); /* fail closed */
}

/* ---- processes ---- */

SEC("tp_btf/sched_process_exec")
int BPF_PROG(process_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	struct process_key key;
	struct process *kept = blank_process();

	if (!kept)
		return 0;
	process_key_of(&key, task);
	process_image(kept, task);
	process_facts(kept, task);
	kept->executed = bpf_ktime_get_boot_ns();
	kept->cgroup = bpf_get_current_cgroup_id();
	bpf_probe_read_kernel_str(kept->filename, sizeof(kept->filename), BPF_CORE_READ(bprm, filename));
	keep_process(&key, kept);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(process_fork, struct task_struct *parent, struct task_struct *child)
{
	struct process_key key, above;
	struct process *kept, *from;

	if (BPF_CORE_READ(child, pid) != BPF_CORE_READ(child, tgid))
		return 0; /* a thread */
	kept = blank_process();
	if (!kept)
		return 0;
	process_key_of(&key, child);
	process_key_of(&above, parent);
	from = bpf_map_lookup_elem(&processes, &above);
	if (from)
		__builtin_memcpy(kept, from, sizeof(*kept)); /* what was executed: prctl may have put another file there */
	else
		process_image(kept, child);
	process_facts(kept, child);
	kept->exited = 0;
	kept->cgroup = bpf_get_current_cgroup_id();
	keep_process(&key, kept);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(process_exit, struct task_struct *task)
{
	struct process_key key;
	struct process *kept;

	if (BPF_CORE_READ(task, pid) != BPF_CORE_READ(task, tgid))
		return 0;
	process_key_of(&key, task);
	kept = bpf_map_lookup_elem(&processes, &key);
	if (kept)
		kept->exited = bpf_ktime_get_boot_ns();
	return 0;
}
