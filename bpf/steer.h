/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What the kernel part and user space say to each other. Fixed layout, no implicit padding; mirrored in
 * agent/kernel/records.py and compared with it by tests/kernel/test_layout.py. Needs __u8 .. __u64 from
 * kernel.h or <linux/types.h>. Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d; ports are
 * in host order; times are nanoseconds of CLOCK_BOOTTIME.
 */
#ifndef VECWARD_STEER_H
#define VECWARD_STEER_H

#define MAX_GUARDS 64
#define MAX_WORKERS 64 /* slots of one guard */
#define UP_LANES 4     /* listeners known of one address and port (SO_REUSEPORT) */
#define IDENTITIES 32768
#define TICKETS 8192
#define FILENAME 256
#define RECORD_VERSION 1
#define BUCKET_OVERFLOW 0xffffffffU /* shared by users beyond the in-flight table */
#define BUCKET_TOTAL 0xfffffffeU    /* all users together */

enum guard_flag { GUARD_ENFORCE = 1, GUARD_PASS_ON_FAILURE = 2, GUARD_REMOTE_PASS = 4, GUARD_OFF = 8 };
enum identity_flag {
	IDENTITY_PROXY = 1,
	IDENTITY_THREAD = 2,
	IDENTITY_KERNEL_WORKER = 4,
	IDENTITY_NO_EXE = 8,
	IDENTITY_EXCHANGED = 16, /* its executable is not the file that was executed: prctl(PR_SET_MM_MAP) */
};
enum mark_kind { MARK_LISTENER = 1, MARK_TICKETED = 2 };
enum event_kind { EVENT_BYPASS = 1, EVENT_UNOBSERVED = 2, EVENT_OFF = 3, EVENT_REMOTE = 4 };

struct flow { /* as the client sees it: source is the client, destination the database */
	__u64 netns;
	__u32 saddr[4];
	__u32 daddr[4];
	__u16 sport;
	__u16 dport;
	__u32 zero;
};

struct watch_key { /* address all zero: any address */
	__u64 netns;
	__u32 addr[4];
	__u16 port;
	__u16 zero;
	__u32 zero2;
};

struct guard {
	__u32 index;
	__u32 flags;
	__u32 workers; /* highest occupied slot + 1 */
	__u32 zero;
};

struct up_key {
	__u64 netns;
	__u32 addr[4];
	__u16 port;
	__u16 lane;
	__u32 zero;
};

struct up {
	__u64 cookie; /* of the listening socket */
	__u32 v6only;
	__u32 zero;
};

struct place { /* an address of a namespace, or (addr all zero) a port of it */
	__u64 netns;
	__u32 addr[4];
	__u32 port;
	__u32 zero;
};

struct identity {
	__u16 version;
	__u16 flags;
	__u32 tgid;
	__u32 tid;
	__u32 uid;
	__u32 gid;
	__u32 euid;
	__u32 loginuid;  /* 0xffffffff: none */
	__u32 sessionid; /* 0xffffffff: none */
	__u64 start;     /* of the group leader */
	__u64 cgroup;
	__u64 netns;
	__u32 netns_inum;
	__u32 mntns_inum;
	__u32 userns_inum;
	__u32 exe_dev; /* kernel form: major << 20 | minor */
	__u64 exe_ino;
	__u64 exe_ctime;
	__u64 parent_start;
	__u32 parent_tgid;
	__u32 bucket; /* whose in-flight count this entry is part of */
	__u64 cookie;
	__u64 connected;
	char comm[16]; /* of the group leader; chosen by the process: not attested */
	__u64 accepted; /* cookie of our end once the handshake is over; 0 before */
};

struct connecting { /* kept on the client's socket */
	struct identity who;
	struct flow flow;
};

struct ticket {
	__u64 cookie;
	__u64 written;
};

struct inflight {
	__u32 started; /* only the kernel writes these two; user space counts in `taken` */
	__u32 closed;
};

struct settings {
	__u32 per_user; /* identities in flight of one user */
	__u32 total;    /* of all users */
};

struct process_key {
	__u64 start;
	__u32 tgid;
	__u32 zero;
};

struct process {
	__u64 executed; /* 0: not seen */
	__u64 exited;   /* 0: not yet */
	__u64 exe_ino;
	__u64 exe_ctime;
	__u64 parent_start;
	__u64 cgroup;
	__u32 parent_tgid;
	__u32 exe_dev;
	__u32 uid;
	__u32 zero;
	char comm[16];
	char filename[FILENAME]; /* as given to exec; empty when the exec was not seen */
};

struct event {
	__u64 at;
	__u64 cookie;
	__u32 kind;
	__u32 guard;
	__u32 guard_flags;
	__u32 known; /* 1: `who` is filled, and taken out of the table */
	struct flow flow;
	struct identity who; /* who.netns differs from flow.netns: begun in another namespace, not proven */
};

enum stat {
	STAT_CONNECT_RECORDED,       /* connect to a guarded port, identity kept on the socket */
	STAT_CONNECT_PROXY,          /* the same, from an exempt cgroup */
	STAT_CONNECT_REFUSED_CAP,    /* EPERM: the user, or all, have too many in flight */
	STAT_CONNECT_REFUSED_MEMORY, /* EPERM: the socket could not hold the record */
	STAT_CONNECT_UNRECORDED,     /* as the two above, but nobody enforces: let through without identity */
	STAT_IDENTITY_WRITTEN,
	STAT_IDENTITY_MISSING, /* the socket carried no record when its SYN left */
	STAT_IDENTITY_LOST,    /* the table was full */
	STAT_IDENTITY_CLOSED,  /* its connection was never established: deleted at close */
	STAT_TICKET_WRITTEN,
	STAT_TICKET_LOST,    /* the table was full: the loop guard drops it */
	STAT_TICKET_EXPIRED, /* deleted at close */
	STAT_LOOKUP_OWN_PORT,
	STAT_LOOKUP_NOT_TCP,
	STAT_LOOKUP_TICKET,
	STAT_LOOKUP_LOOP,
	STAT_LOOKUP_OFF,
	STAT_LOOKUP_NOT_UP,
	STAT_LOOKUP_REMOTE,
	STAT_LOOKUP_STEERED,
	STAT_LOOKUP_RESERVE,
	STAT_LOOKUP_UNOBSERVED,
	STAT_LOOKUP_REFUSED, /* no listener took it, and the guard does not pass on failure */
	STAT_SLOT_FAILED,    /* a filled slot whose socket could not be assigned */
	STAT_ESTABLISHED_STEERED,
	STAT_ESTABLISHED_UPSTREAM,
	STAT_ESTABLISHED_UNOBSERVED,
	STAT_ESTABLISHED_OFF,
	STAT_ESTABLISHED_REMOTE,
	STAT_ESTABLISHED_BYPASS,
	STAT_UP_ADDED,
	STAT_UP_LOST, /* more listeners than lanes, or the table is full */
	STAT_UP_REMOVED,
	STAT_EVENT_LOST,
	STAT_PROCESS_LOST,
	STATS
};

#endif
