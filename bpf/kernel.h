/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The few kernel declarations that steer.bpf.c needs. Contexts (bpf_sock_addr, ...) are UAPI and have fixed offsets.
 * Kernel structs name only the fields read, and their offsets are relocated at load time (CO-RE) from the
 * running kernel's BTF, so this file needs no kernel headers and no vmlinux.h.
 */
#ifndef VECWARD_KERNEL_H
#define VECWARD_KERNEL_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef _Bool bool;
enum { false = 0, true = 1 };

enum { BPF_ANY = 0, BPF_NOEXIST = 1 };
enum { BPF_F_NO_PREALLOC = 1, BPF_F_CLONE = 512 };
enum { BPF_SK_STORAGE_GET_F_CREATE = 1 };
enum { BPF_SK_LOOKUP_F_REPLACE = 1, BPF_SK_LOOKUP_F_NO_REUSEPORT = 2 };
enum { SK_DROP = 0, SK_PASS = 1 };
enum { AF_INET = 2, AF_INET6 = 10, SOCK_STREAM = 1, IPPROTO_TCP = 6 };
enum { TCP_SYN_SENT = 2, TCP_CLOSE = 7, TCP_LISTEN = 10 };
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_SOCKMAP = 15,
	BPF_MAP_TYPE_SK_STORAGE = 24,
	BPF_MAP_TYPE_RINGBUF = 27,
};
enum {
	BPF_SOCK_OPS_TCP_CONNECT_CB = 3,
	BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB = 5,
	BPF_SOCK_OPS_STATE_CB = 10,
	BPF_SOCK_OPS_TCP_LISTEN_CB = 11,
	BPF_SOCK_OPS_STATE_CB_FLAG = 4,
};

struct bpf_sock; /* only ever handed from a context to a helper */

struct bpf_sock_addr {
	__u32 user_family;
	__u32 user_ip4;
	__u32 user_ip6[4];
	__u32 user_port; /* network order in the low 16 bits */
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 msg_src_ip4;
	__u32 msg_src_ip6[4];
	struct bpf_sock *sk __attribute__((aligned(8)));
};

struct bpf_sock_ops {
	__u32 op;
	__u32 args[4];
	__u32 family;
	__u32 remote_ip4;
	__u32 local_ip4;
	__u32 remote_ip6[4];
	__u32 local_ip6[4];
	__u32 remote_port; /* network order, in the high 16 bits on little endian: read with ntohl */
	__u32 local_port;  /* host order */
	__u32 is_fullsock;
	__u32 snd_cwnd;
	__u32 srtt_us;
	__u32 bpf_sock_ops_cb_flags;
	__u32 counters[20]; /* state .. sk_txhash */
	__u64 bytes_received;
	__u64 bytes_acked;
	struct bpf_sock *sk __attribute__((aligned(8)));
};

struct bpf_sk_lookup {
	__u64 cookie;
	__u32 family;
	__u32 protocol;
	__u32 remote_ip4;
	__u32 remote_ip6[4];
	__be16 remote_port; /* network order */
	__u16 : 16;
	__u32 local_ip4;
	__u32 local_ip6[4];
	__u32 local_port; /* host order */
	__u32 ingress_ifindex;
};

#define RELOCATED __attribute__((preserve_access_index))

typedef struct { __u32 val; } kuid_t;
typedef struct { __u32 val; } kgid_t;
struct timespec64 { __s64 tv_sec; long tv_nsec; } RELOCATED;
struct ns_common { __u32 inum; } RELOCATED;
struct net { struct ns_common ns; __u64 net_cookie; } RELOCATED;
struct net___counter { struct { __s64 counter; } net_cookie; } RELOCATED; /* before 5.12; 0 until somebody asked */
struct user_namespace { struct ns_common ns; } RELOCATED;
struct mnt_namespace { struct ns_common ns; } RELOCATED;
struct nsproxy { struct mnt_namespace *mnt_ns; struct net *net_ns; } RELOCATED;
struct cred { kuid_t uid; kgid_t gid; kuid_t euid; struct user_namespace *user_ns; } RELOCATED;
struct super_block { __u32 s_dev; } RELOCATED;
struct inode { unsigned long i_ino; struct super_block *i_sb; } RELOCATED;
struct inode___seconds { __s64 i_ctime_sec; __u32 i_ctime_nsec; } RELOCATED; /* since 6.11 */
struct inode___hidden { struct timespec64 __i_ctime; } RELOCATED;            /* 6.6 to 6.10 */
struct inode___plain { struct timespec64 i_ctime; } RELOCATED;               /* before 6.6 */
struct file { struct inode *f_inode; } RELOCATED;
struct mm_struct { struct file *exe_file; } RELOCATED;
struct task_struct {
	unsigned int flags;
	int pid;
	int tgid;
	__u64 start_boottime;
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	struct mm_struct *mm;
	const struct cred *real_cred;
	const struct cred *cred;
	struct nsproxy *nsproxy;
	char comm[16];
	kuid_t loginuid;
	unsigned int sessionid;
} RELOCATED;
struct task_struct___old { __u64 real_start_time; } RELOCATED; /* start_boottime before 5.5 */
struct linux_binprm { const char *filename; } RELOCATED;
typedef struct { struct net *net; } RELOCATED possible_net_t;
struct sock_common { unsigned char skc_ipv6only : 1; possible_net_t skc_net; } RELOCATED;
struct sock { struct sock_common __sk_common; } RELOCATED;

#endif
