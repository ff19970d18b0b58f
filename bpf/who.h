/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Who is calling: the identity record, the count of records in flight, and what is kept of every process so that
 * a client gone before its connection is accepted still has a name. Reads the current task only where the hook
 * runs in it (connect4/6, fork, exec, exit).
 */
#ifndef VECWARD_WHO_H
#define VECWARD_WHO_H

#define PF_KTHREAD_OR_WORKER (0x00200000 | 0x00000010) /* PF_KTHREAD | PF_IO_WORKER */

static __always_inline void count(__u32 what)
{
	__u64 *value = bpf_map_lookup_elem(&stats, &what);

	if (value)
		__sync_fetch_and_add(value, 1); /* a softirq may interrupt the same program on this CPU */
}

/* ---- in-flight accounting: started - closed - taken, each with one kind of writer ---- */

static __always_inline __s32 in_flight(__u32 bucket)
{
	struct inflight *kernel = bpf_map_lookup_elem(&inflight, &bucket);
	__u32 *user = bpf_map_lookup_elem(&taken, &bucket);

	return kernel ? (__s32)(kernel->started - kernel->closed - (user ? *user : 0)) : 0;
}

static __always_inline struct inflight *account(__u32 bucket)
{
	struct inflight none = {};

	bpf_map_update_elem(&inflight, &bucket, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&inflight, &bucket);
}

static __always_inline void charge(struct identity *who)
{
	struct inflight *total = account(BUCKET_TOTAL), *own = account(who->uid);

	who->bucket = who->uid;
	if (!own) { /* more users than the table holds share one bucket */
		who->bucket = BUCKET_OVERFLOW;
		own = account(BUCKET_OVERFLOW);
	}
	if (own)
		__sync_fetch_and_add(&own->started, 1);
	if (total)
		__sync_fetch_and_add(&total->started, 1);
}

static __always_inline void discharge(__u32 bucket)
{
	struct inflight *total = account(BUCKET_TOTAL), *own = account(bucket);

	if (own)
		__sync_fetch_and_add(&own->closed, 1);
	if (total)
		__sync_fetch_and_add(&total->closed, 1);
}

static __always_inline bool over_cap(__u32 uid)
{
	struct settings *limits = bpf_map_lookup_elem(&settings, &(__u32){0});
	__u32 overflow = BUCKET_OVERFLOW;

	if (!limits || in_flight(BUCKET_TOTAL) >= (__s32)limits->total)
		return true;
	if (!bpf_map_lookup_elem(&inflight, &uid) && in_flight(overflow) >= (__s32)limits->per_user)
		return true;
	return in_flight(uid) >= (__s32)limits->per_user;
}

/* ---- who: read from the task that calls connect, and from tasks that exec ---- */

static __always_inline __u64 start_of(struct task_struct *task)
{
	struct task_struct___old *old = (void *)task;

	if (bpf_core_field_exists(task->start_boottime))
		return BPF_CORE_READ(task, start_boottime);
	return BPF_CORE_READ(old, real_start_time);
}

static __always_inline __u64 ctime_of(struct inode *inode)
{
	struct inode___seconds *seconds = (void *)inode;
	struct inode___hidden *hidden = (void *)inode;
	struct inode___plain *plain = (void *)inode;

	if (bpf_core_field_exists(seconds->i_ctime_sec)) /* since 6.13 the top bit of nsec says that somebody looked */
		return BPF_CORE_READ(seconds, i_ctime_sec) * 1000000000ULL +
		       (BPF_CORE_READ(seconds, i_ctime_nsec) & 0x7fffffff);
	if (bpf_core_field_exists(hidden->__i_ctime))
		return BPF_CORE_READ(hidden, __i_ctime.tv_sec) * 1000000000ULL + BPF_CORE_READ(hidden, __i_ctime.tv_nsec);
	return BPF_CORE_READ(plain, i_ctime.tv_sec) * 1000000000ULL + BPF_CORE_READ(plain, i_ctime.tv_nsec);
}

static __always_inline void process_key_of(struct process_key *key, struct task_struct *task)
{
	key->tgid = BPF_CORE_READ(task, tgid);
	key->start = start_of(BPF_CORE_READ(task, group_leader));
	key->zero = 0;
}

static __always_inline void describe(struct identity *who)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);
	struct task_struct *parent = BPF_CORE_READ(leader, real_parent, group_leader);
	struct inode *exe = BPF_CORE_READ(task, mm, exe_file, f_inode);
	__u64 ids = bpf_get_current_pid_tgid();
	struct process_key key;
	struct process *executed;

	who->version = RECORD_VERSION;
	who->accepted = 0;
	who->tgid = ids >> 32;
	who->tid = ids;
	who->flags = (who->tgid != who->tid ? IDENTITY_THREAD : 0) | (exe ? 0 : IDENTITY_NO_EXE);
	if (BPF_CORE_READ(task, flags) & PF_KTHREAD_OR_WORKER)
		who->flags |= IDENTITY_KERNEL_WORKER; /* io_uring: comm and tid are the worker's, the rest is the owner's */
	who->uid = BPF_CORE_READ(task, cred, uid.val);
	who->gid = BPF_CORE_READ(task, cred, gid.val);
	who->euid = BPF_CORE_READ(task, cred, euid.val);
	who->loginuid = who->sessionid = 0xffffffff;
	if (bpf_core_field_exists(task->loginuid))
		who->loginuid = BPF_CORE_READ(task, loginuid.val);
	if (bpf_core_field_exists(task->sessionid))
		who->sessionid = BPF_CORE_READ(task, sessionid);
	who->start = start_of(leader);
	who->cgroup = bpf_get_current_cgroup_id();
	who->netns_inum = BPF_CORE_READ(task, nsproxy, net_ns, ns.inum);
	who->mntns_inum = BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum);
	who->userns_inum = BPF_CORE_READ(task, cred, user_ns, ns.inum);
	who->exe_dev = BPF_CORE_READ(exe, i_sb, s_dev);
	who->exe_ino = BPF_CORE_READ(exe, i_ino);
	who->exe_ctime = ctime_of(exe);
	who->parent_tgid = BPF_CORE_READ(parent, tgid);
	who->parent_start = start_of(parent);
	who->connected = bpf_ktime_get_boot_ns();
	BPF_CORE_READ_STR_INTO(&who->comm, leader, comm);
	process_key_of(&key, task); /* now: an execve after this connect replaces what it is compared with */
	executed = bpf_map_lookup_elem(&processes, &key);
	if (exe && executed && executed->executed && /* an execve was seen, not only a fork */
	    (executed->exe_ino != who->exe_ino || executed->exe_dev != who->exe_dev))
		who->flags |= IDENTITY_EXCHANGED;
}

/* ---- processes: kept by (tgid, start), never deleted but evicted ---- */

static __always_inline void process_image(struct process *kept, struct task_struct *task)
{
	struct inode *exe = BPF_CORE_READ(task, mm, exe_file, f_inode);

	kept->exe_ino = BPF_CORE_READ(exe, i_ino);
	kept->exe_dev = BPF_CORE_READ(exe, i_sb, s_dev);
	kept->exe_ctime = ctime_of(exe);
}

static __always_inline void process_facts(struct process *kept, struct task_struct *task)
{
	struct task_struct *parent = BPF_CORE_READ(task, group_leader, real_parent, group_leader);

	kept->parent_tgid = BPF_CORE_READ(parent, tgid);
	kept->parent_start = start_of(parent);
	kept->uid = BPF_CORE_READ(task, cred, uid.val);
	BPF_CORE_READ_STR_INTO(&kept->comm, task, group_leader, comm);
}

/* A cleared record of this CPU; these hooks do not nest. */
static __always_inline struct process *blank_process(void)
{
	struct process *kept = bpf_map_lookup_elem(&scratch, &(__u32){0});

	if (kept)
		__builtin_memset(kept, 0, sizeof(*kept));
	return kept;
}

static __always_inline void keep_process(struct process_key *key, struct process *kept)
{
	if (bpf_map_update_elem(&processes, key, kept, BPF_ANY))
		count(STAT_PROCESS_LOST);
}

#endif
