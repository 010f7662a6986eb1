// SPDX-License-Identifier: MIT

/**
 * @file
 * The C interface of the data plane, and all that the control plane may call.
 *
 * Everything here is called from the control thread. No function blocks on a target for longer
 * than the batch in flight. Errors are 0 or -errno; struct usw_error, where there is one, is filled
 * once, where the cause is known, in words for the user.
 *
 * This file is also read by the cffi build: only declarations that cffi understands between the
 * two CDEF marks.
 */

#ifndef UFFDSWAP_H
#define UFFDSWAP_H

#include <stddef.h>
#include <stdint.h>

/* CDEF begin */

struct usw_error {
	int code;        /* positive errno */
	char text[1024]; /* with a path of the user's in it */
};

/* What the kernel offers. Booleans are 0 or 1. */
struct usw_probe {
	int open_error;    /* errno of opening a full-mode userfaultfd by any way, 0 if one works */
	int syscall_error; /* errno of userfaultfd(2) */
	int device_error;  /* errno of /dev/userfaultfd */
	int api_error;     /* errno of UFFDIO_API with the features needed */
	int sysctl_unprivileged;   /* vm.unprivileged_userfaultfd; -1 if it cannot be read */
	uint64_t features;         /* the kernel's feature bits */
	uint64_t features_missing; /* needed and not offered */
	int has_move;              /* UFFDIO_MOVE does what it should */
	int has_pagemap_scan;      /* PAGEMAP_SCAN ioctl */
	int has_clone3;            /* clone3(2) is allowed */
	int has_ptrace_capability; /* CAP_SYS_PTRACE in the effective set */
	int page_bytes;
};

struct usw_config {
	uint64_t memory_limit_bytes;   /* budget; UINT64_MAX: none */
	uint64_t resident_limit_bytes; /* limit on resident anonymous memory; UINT64_MAX: none */
	uint32_t stress_pages_per_second;
	uint32_t fault_threads; /* 0: choose by the number of CPUs */
	uint32_t disk_plain;    /* do not encrypt what is written to disk tiers */
	uint32_t on_full;       /* enum usw_on_full */
};

/* What to do when every tier is full. */
enum usw_on_full {
	USW_ON_FULL_AUTO, /* wait where there is a disk tier and another one would help, else kill */
	USW_ON_FULL_WAIT,
	USW_ON_FULL_KILL,
};

enum usw_event_kind {
	USW_EVENT_NONE,
	USW_EVENT_TARGET_ADDED,  /* target_id, pid; descriptors may be had from usw_target_fds() */
	USW_EVENT_TARGET_GONE,   /* target_id, pid */
	USW_EVENT_TARGET_KILLED, /* the agent had to kill it; text says why */
	USW_EVENT_NOT_KILLED,    /* it had to be killed and could not; text says why it had to */
	USW_EVENT_OUT_OF_MEMORY, /* nothing is left to give; every target has been killed; text */
	USW_EVENT_POISONED, /* a page could not be proved right; text says which, tier, reason */
	USW_EVENT_WARNING,
	USW_EVENT_ALONE,      /* a forked child has not joined; text says what that means */
	USW_EVENT_TIER_EMPTY, /* what it held has moved; target_id is the tier's ID; text names it */
	USW_EVENT_TIER_REMOVED, /* and its file is closed; as before */
	USW_EVENT_TIER_KEPT,    /* a removal was given up; target_id as before; text says why */
	USW_EVENT_FULL, /* every tier is full, and the session waits; text says what is held */
	USW_EVENT_ROOM, /* the wait is over */
	USW_EVENT_REQUEST_DONE, /* target_id is the request's number: usw_session_result() has it */
};

struct usw_event {
	int kind;
	uint32_t target_id;
	int pid;
	char text[240];
};

/*
 * One fixed-size answer to "how is it going". Counters never go down; gauges are marked (g).
 * The meaning of each field is in src/stats.h, beside the list the JSON names come from.
 */
struct usw_statistics {
	uint64_t targets_total;
	uint64_t targets_now;           /* g */
	uint64_t targets_without_hands; /* g */

	uint64_t resident_bytes; /* g */
	uint64_t resident_peak_bytes;
	uint64_t ram_bytes; /* g: everything held in RAM outside the targets */
	uint64_t ram_peak_bytes;
	uint64_t standby_pages;  /* g */
	uint64_t metadata_bytes; /* g */
	uint64_t descriptors;    /* g */

	uint64_t faults_total;
	uint64_t faults_hole;
	uint64_t faults_standby;
	uint64_t faults_zero;
	uint64_t faults_same;
	uint64_t faults_ram;
	uint64_t faults_disk;
	uint64_t faults_present;  /* somebody was first: only a wake-up was left to do */
	uint64_t faults_deferred; /* waited for room, for an event or for an eviction */
	uint64_t prefetched_pages;
	uint64_t prefetch_proven; /* of those: walked through, or wanted by what trials say */
	uint64_t latency_p50_ns;
	uint64_t latency_p90_ns;
	uint64_t latency_p99_ns;
	uint64_t latency_p999_ns;
	uint64_t latency_max_ns;

	uint64_t evicted_pages;
	uint64_t evicted_unshared;
	uint64_t evicted_clean;
	uint64_t evicted_zero;
	uint64_t evicted_same;
	uint64_t evicted_equal;  /* shares what another page stored */
	uint64_t evicted_ahead;  /* of the next two, compressed by another thread */
	uint64_t evicted_packed; /* of the next, compressed denser at once */
	uint64_t evicted_compressed;
	uint64_t evicted_incompressible;
	uint64_t evict_refused; /* were picked and stayed: pinned, shared, locked or gone */

	uint64_t ram_pages;          /* g */
	uint64_t ram_original_bytes; /* g */
	uint64_t ram_stored_bytes;   /* g */
	uint64_t ram_segments;       /* g */

	uint64_t compacted_segments;
	uint64_t packed_pages; /* compressed denser once they were cold */
	uint64_t verified_pages;
	uint64_t poisoned_pages;
	uint64_t vanished_pages;
	uint64_t out_of_memory; /* 1 once the budget could not be met */

	uint64_t disk_pages;          /* g */
	uint64_t disk_original_bytes; /* g */
	uint64_t disk_stored_bytes;   /* g: space taken on disks */
	uint64_t disk_segments;       /* g */
	uint64_t disk_peak_bytes;
	uint64_t demoted_segments;
	uint64_t promoted_segments;
	uint64_t disk_is_encrypted; /* g: 1 if what is written to disk tiers is encrypted */
	uint64_t disk_uses_uring;   /* g: 1 if disk tiers are read and written through io_uring */
	uint64_t waits_for_room;    /* g: 1 while every tier is full and the session waits */
};

enum usw_tier_kind {
	USW_TIER_KIND_RAM,
	USW_TIER_KIND_FOLDER,
	USW_TIER_KIND_FILE,
	USW_TIER_KIND_DEVICE,
};

enum usw_tier_condition {
	USW_TIER_IS_ACTIVE,
	USW_TIER_IS_FULL,
	USW_TIER_IS_FAILING, /* its last write failed; it is tried again */
	USW_TIER_IS_LEAVING, /* it is being removed */
};

/* One tier. The first of usw_session_tier_list() is RAM. */
struct usw_tier_info {
	char name[32];
	char path[256]; /* empty for RAM */
	uint32_t id;    /* never used again in this session; 0 for RAM */
	int kind;       /* enum usw_tier_kind */
	int condition;  /* enum usw_tier_condition */
	int priority;
	int is_encrypted;
	uint64_t cap_bytes;  /* UINT64_MAX: none; for RAM the budget */
	uint64_t free_bytes; /* what it could take besides, by its cap and by its file system */
	uint64_t segments;
	uint64_t pages;
	uint64_t original_bytes;
	uint64_t stored_bytes;
};

/*
 * Find out what this kernel lets this process do. Opens and closes descriptors of its own and, for
 * has_move, moves one page; no other effect. Takes well under a millisecond.
 */
void usw_probe_run(struct usw_probe *ret);

struct usw_session;

/* Create the session: memfds, fault threads, reclaim thread. */
int usw_session_create(const struct usw_config *config, struct usw_session **ret,
		       struct usw_error *error);
/* Stop the threads, drop all targets (they should be gone) and all memory. NULL is fine. */
void usw_session_destroy(struct usw_session *session);

/* The session's memfds, for the launcher to hold. Returns how many were stored in fds. */
int usw_session_fds(struct usw_session *session, int *fds, int capacity);

/* A descriptor that is readable while usw_session_next_event() has something. */
int usw_session_event_fd(struct usw_session *session);
/* Take the oldest event. Returns 1, or 0 if there is none. */
int usw_session_next_event(struct usw_session *session, struct usw_event *ret);

/* Change the limits while the session runs; UINT64_MAX for none. */
void usw_session_set_limits(struct usw_session *session, uint64_t memory_limit_bytes,
			    uint64_t resident_limit_bytes);

/*
 * Add a disk tier: a folder, a file or a block device; `cap_bytes` UINT64_MAX for no cap. The tier
 * with the highest priority is filled first, and of those the one that was added first. `name`
 * NULL: the first of disk1, disk2, ... that is free. Returns its ID, which is positive. Refused:
 * -ENOENT, -EACCES, ... with a text that says why and what would help; -EEXIST: it is one already,
 * or the name is taken.
 */
int usw_session_tier_add(struct usw_session *session, const char *path, const char *name,
			 uint64_t cap_bytes, int priority, struct usw_error *error);
/*
 * Begin to remove a disk tier, by its name or path, while everything runs. Returns at once; a
 * TIER_EMPTY event tells that all has moved, a TIER_REMOVED event that its file has been given back,
 * and usw_session_tier_list() how far it is; a TIER_KEPT event tells that what is left cannot hold
 * it any more, and that it stays. Returns its ID. Nothing has happened on -ENOENT (no such tier),
 * -EALREADY (on its way out) or -ENOSPC (what is left cannot hold it).
 */
int usw_session_tier_remove(struct usw_session *session, const char *name, struct usw_error *error);
/* Store what there is of every tier; returns how many were stored. */
int usw_session_tier_list(struct usw_session *session, struct usw_tier_info *ret, int capacity);

void usw_session_statistics(struct usw_session *session, struct usw_statistics *ret);

/*
 * Finish a handshake. `hello` is what arrived on `connection` (untrusted), `fds` what came with it,
 * `pidfd` refers to the peer whose pid is `pid`. Checks everything, answers with a welcome on the
 * connection, and then owns connection, pidfd and fds: on failure too, they are closed.
 * After a hello of kind DEVICE the connection is kept open for the caller and 1 is returned.
 * Errors: -EPROTO (garbage), -EPROTONOSUPPORT (another version), -EPERM (userfaultfd refused; text
 * says why), -ENOENT (no such fork), or what a system call said.
 */
int usw_target_add(struct usw_session *session, int connection, int pidfd, int pid,
		   const void *hello, size_t hello_bytes, const int *fds, int fd_count,
		   struct usw_error *error);

/*
 * Duplicates of the descriptors a successor would need, for the caller to close: userfaultfd,
 * pidfd, area, maps, pagemap, smaps, connection. Returns how many; 0 if the target is gone.
 */
int usw_target_fds(struct usw_session *session, uint32_t target_id, int *fds, int capacity);

/* SIGKILL every target, in any state. The text becomes an event each: TARGET_KILLED, NOT_KILLED. */
void usw_session_kill_all(struct usw_session *session, const char *why);

/* What one target holds and has done. Gauges are marked (g). */
struct usw_target_figures {
	uint32_t id;
	int pid;                    /* 0: a fork that has not handed itself in yet */
	uint64_t resident_bytes;    /* g: anonymous, as last measured */
	uint64_t evicted_pages;     /* g: the four below together */
	uint64_t zero_pages;        /* g: stored nowhere, as the next */
	uint64_t same_pages;        /* g */
	uint64_t standby_pages;     /* g: out, not yet compressed */
	uint64_t object_pages;      /* g: in a tier, the next two together */
	uint64_t ram_pages;         /* g */
	uint64_t disk_pages;        /* g */
	uint64_t ram_stored_bytes;  /* g: what those take, garbage and tables not counted */
	uint64_t disk_stored_bytes; /* g */
	uint64_t faults;            /* evicted pages that came back because they were touched */
	uint64_t refaults;          /* of those, touched again soon after they had left */
};

/*
 * The figures of the targets whose ID is above `after_id`, in the order of their IDs, at most
 * `capacity` of them. Returns how many. Counts evicted pages one by one, some 60 ns each.
 */
int usw_session_targets(struct usw_session *session, uint32_t after_id,
			struct usw_target_figures *ret, int capacity);

/*
 * Requests. Each returns the number of a request, which the threads that own what it needs carry
 * out while faults are served, or -ESRCH (no such target), -EBUSY (too many requests at once).
 * USW_EVENT_REQUEST_DONE announces the end. A park ends the restore of the same target, and the
 * other way round, with what they have done so far.
 */

/* Evict about so many pages, the coldest first, of one target or (target_id 0) of all. */
int usw_session_reclaim(struct usw_session *session, uint32_t target_id, uint64_t pages);
/* Evict all that can leave a target, compress it, and send it to a disk tier if there is one. */
int usw_session_park(struct usw_session *session, uint32_t target_id);
/* Bring back what has left a target, as far as the limits allow without evicting for it. */
int usw_session_restore(struct usw_session *session, uint32_t target_id);

/*
 * Ask for the end of a request: 1 and the pages that were moved, or 0 if it goes on, or -ESRCH if
 * its target was gone first. Anything but 0 gives the number back for another request.
 */
int usw_session_result(struct usw_session *session, int request, uint64_t *ret_pages);

/* CDEF end */

#endif /* UFFDSWAP_H */
