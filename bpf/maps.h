/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Every map of the kernel part. A second front end (bcc) has to replace these macros only.
 * Who writes: K the programs, U user space.
 */
#ifndef VECWARD_MAPS_H
#define VECWARD_MAPS_H

#define MAP(kind, name, key_type, value_type, entries)                                                               \
	struct {                                                                                                     \
		__uint(type, BPF_MAP_TYPE_##kind);                                                                   \
		__uint(max_entries, entries);                                                                        \
		__type(key, key_type);                                                                               \
		__type(value, value_type);                                                                           \
	} name SEC(".maps")

#define SOCKET_STORAGE(name, value_type, extra)                                                                      \
	struct {                                                                                                     \
		__uint(type, BPF_MAP_TYPE_SK_STORAGE);                                                               \
		__uint(map_flags, BPF_F_NO_PREALLOC | (extra));                                                      \
		__type(key, int);                                                                                    \
		__type(value, value_type);                                                                           \
	} name SEC(".maps")

MAP(HASH, namespaces, __u64, __u32, 64);              /* U  cookies of the guarded network namespaces */
MAP(HASH, ports, __u16, __u32, 256);                  /* U  guarded ports; the flags of their guards, or-ed */
MAP(HASH, watch, struct watch_key, struct guard, 256); /* U */
MAP(HASH, exempt, __u64, __u32, 256);                 /* U  cgroup ids of the proxies */
MAP(ARRAY, settings, __u32, struct settings, 1);      /* U */
MAP(HASH, local_addresses, struct place, __u32, 4096); /* U */
MAP(HASH, own_ports, struct place, __u64, 4352);      /* U, K deletes: our listeners' own ports -> cookie */
MAP(SOCKMAP, slots, __u32, __u64, MAX_GUARDS * MAX_WORKERS); /* U  empties itself when a listener closes */
MAP(SOCKMAP, reserve, __u32, __u64, MAX_GUARDS);      /* U */
SOCKET_STORAGE(marks, __u32, BPF_F_CLONE);            /* U  on listeners, inherited by what they accept; K: ticketed */
SOCKET_STORAGE(connecting, struct connecting, 0);     /* K  freed with its socket, so it cannot fill up */
MAP(HASH, identities, struct flow, struct identity, IDENTITIES); /* K, U deletes */
MAP(HASH, inflight, __u32, struct inflight, 16384);   /* K */
MAP(HASH, taken, __u32, __u32, 16384);                /* U */
MAP(LRU_HASH, elsewhere, struct flow, __u64, IDENTITIES); /* K  flows (netns 0) begun outside guarded namespaces */
MAP(LRU_HASH, spaces, __u64, __u32, 1024);            /* K  netns cookie -> inode number, of every caller */
MAP(HASH, tickets, struct flow, struct ticket, TICKETS); /* K */
MAP(HASH, up, struct up_key, struct up, 8192);        /* K, U seeds */
MAP(LRU_HASH, passed, struct flow, __u32, 16384);     /* K  let through on purpose: event_kind */
MAP(LRU_HASH, processes, struct process_key, struct process, 16384); /* K */
MAP(PERCPU_ARRAY, scratch, __u32, struct process, 1); /* K */
MAP(PERCPU_ARRAY, stats, __u32, __u64, STATS);        /* K */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

#endif
