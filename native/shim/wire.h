// SPDX-License-Identifier: MIT

/**
 * @file
 * What the shim, hands and the agent say to each other: the handshake and the command ring.
 *
 * Both sides include this file, so it is the protocol. Any change of layout or meaning raises
 * USW_WIRE_VERSION; a shim whose version differs from the agent's stays inert.
 *
 * Handshake, on a SOCK_SEQPACKET connection to $_UFFDSWAP_SOCKET:
 *
 *   shim  -> agent   struct usw_hello with descriptors, in the order of enum usw_hello_fd
 *   agent -> shim    struct usw_welcome; with one descriptor where its status says so
 *
 * Each side asks for the other's user first (SO_PEERCRED): the agent takes its own, the shim sends
 * nothing to a listener that is neither its own user's nor root's.
 *
 * After a welcome the connection belongs to hands. It says USW_HANDS_HERE once, and the kernel adds
 * who says so (SO_PASSCRED), in the agent's own numbers, as what hands knows of itself may be a
 * number of another PID namespace. From there on a byte from the agent is a doorbell (work is in
 * the ring), the byte USW_BELL_QUIT ends hands, end-of-file means that the agent is gone.
 *
 * The ring is the first USW_RING_BYTES of the area memfd, which both sides map. The agent writes
 * commands, hands writes results. The agent copies and checks everything it reads there: a
 * hostile target owns the memory of the ring and may write to it at any time.
 */

#ifndef USW_WIRE_H
#define USW_WIRE_H

#include <stdint.h>

#define USW_WIRE_MAGIC 0x75737731u /* "usw1" */
#define USW_WIRE_VERSION 4u

#define USW_PAGE_SHIFT 12
#define USW_PAGE_BYTES 4096u
#define USW_HUGE_BYTES (2u << 20)
#define USW_HUGE_PAGES 512u

/** Pages and runs of one command. One huge page is a whole batch. */
#define USW_BATCH_PAGES_MAX 512u
#define USW_BATCH_RUNS_MAX 128u

/**
 * The area: one mapping in the target, aligned to USW_HUGE_BYTES, made by the shim and left out of
 * forked children (MADV_DONTFORK). Offsets from its start:
 *
 *   0          inaccessible guard page
 *   4 KiB      stack of hands, private
 *   64 KiB     ring, shared: area memfd from offset 0
 *   2 MiB      standby slots, shared: area memfd from USW_RING_BYTES
 *   STAGE_*    four staging ranges of 2 MiB, private, always empty between two commands
 *
 * Evicted pages go source -> "in" stage -> "out" stage -> standby slot. The "in" stages are
 * registered with the target's own userfaultfd, because UFFDIO_MOVE refuses (EAGAIN) while one of
 * that descriptor's events is unread, and so a page can never be taken from a mapping that
 * appeared after an unmap nobody has heard of. The "out" stages are registered (write-protect
 * mode, which gives no messages here) with a userfaultfd without events, so that dropping them
 * wakes nobody. Huge pages have stages of their own: a stage that ever held single pages has a
 * page table, and moving a huge page there would split it.
 */
#define USW_AREA_STACK_OFFSET 0x1000u
#define USW_AREA_STACK_BYTES 0xf000u
#define USW_AREA_RING_OFFSET 0x10000u
#define USW_RING_BYTES 0x10000u
#define USW_STANDBY_SLOTS 4096u
#define USW_STANDBY_BYTES (USW_STANDBY_SLOTS * USW_PAGE_BYTES)
#define USW_AREA_STANDBY_OFFSET USW_HUGE_BYTES
#define USW_AREA_STAGE_IN_OFFSET (USW_AREA_STANDBY_OFFSET + USW_STANDBY_BYTES)
#define USW_AREA_STAGE_OUT_OFFSET (USW_AREA_STAGE_IN_OFFSET + USW_HUGE_BYTES)
#define USW_AREA_HUGE_IN_OFFSET (USW_AREA_STAGE_OUT_OFFSET + USW_HUGE_BYTES)
#define USW_AREA_HUGE_OUT_OFFSET (USW_AREA_HUGE_IN_OFFSET + USW_HUGE_BYTES)
#define USW_AREA_BYTES (USW_AREA_HUGE_OUT_OFFSET + USW_HUGE_BYTES)
#define USW_AREA_MEMFD_BYTES (USW_RING_BYTES + USW_STANDBY_BYTES)

enum usw_hello_kind {
	USW_HELLO_IMAGE = 1,  /* a new image (after exec), or a fork whose parent was never armed */
	USW_HELLO_FORK = 2,   /* a forked child that inherited the parent's registrations */
	USW_HELLO_DEVICE = 3, /* asks for an open /dev/userfaultfd; a hello of kind IMAGE follows */
	USW_HELLO_JOIN = 4,   /* asks a standing agent for a session; no descriptors */
	USW_HELLO_GIVE_UP = 5, /* an image cannot join: no descriptors, the errno as its token */
};

/** Order of the descriptors in a hello. IMAGE sends all, FORK all but the last, DEVICE none. */
enum usw_hello_fd {
	USW_FD_MAPS,    /* /proc/self/maps, opened by the target itself */
	USW_FD_PAGEMAP, /* /proc/self/pagemap */
	USW_FD_SMAPS,   /* /proc/self/smaps */
	USW_FD_AREA, /* memfd of ring and standby, USW_AREA_MEMFD_BYTES long, sealed against resizing */
	USW_FD_UFFD, /* full-mode userfaultfd, not yet UFFDIO_API */
	USW_FD_COUNT,
};

struct usw_hello {
	uint32_t magic;
	uint32_t version;
	uint32_t kind; /* enum usw_hello_kind */
	uint32_t reserved;
	uint64_t token;      /* FORK: what the child read in its token page; else 0 */
	uint64_t area_start; /* address of the area, aligned to USW_HUGE_BYTES */
	uint64_t token_page; /* address of the token page */
};

/**
 * The token page tells the agent which child is which. It is one page, MADV_WIPEONFORK, that the
 * agent registers when it arms the target (first eviction). A forked child of an armed target
 * finds a hole there, its read faults on the child's new userfaultfd, and the agent answers with
 * a page whose first eight bytes are the child's token. A child of a target that was never armed
 * reads zero, has inherited no registration, and introduces itself as an IMAGE.
 */

enum usw_welcome_status {
	USW_WELCOME_OK = 0,      /* go on; FORK: carries the child's userfaultfd */
	USW_WELCOME_REFUSED = 1, /* stay inert */
	USW_WELCOME_DEVICE = 2,  /* carries an open /dev/userfaultfd */
	USW_WELCOME_SESSION = 3, /* answer to JOIN: struct usw_session_welcome */
};

struct usw_welcome {
	uint32_t magic;
	uint32_t version;
	uint32_t status; /* enum usw_welcome_status */
	uint32_t reserved;
};

/**
 * A standing agent ($UFFDSWAP_SOCKET) makes a session for each program that asks, and says where
 * its socket is. The shim puts that into $_UFFDSWAP_SOCKET, so that the program's children, forked
 * or executed, come to the same session.
 */
#define USW_SOCKET_PATH_BYTES 108u

struct usw_session_welcome {
	struct usw_welcome welcome;
	char path[USW_SOCKET_PATH_BYTES]; /* ends with a zero byte */
};

#define USW_HANDS_HERE 'h'
#define USW_BELL_WORK 'w'
#define USW_BELL_QUIT 'q'

enum usw_command_op {
	USW_OP_NONE = 0,
	USW_OP_EVICT = 1,      /* move the runs out and copy them to their standby slots */
	USW_OP_EVICT_HUGE = 2, /* the same for one aligned huge page, through the huge stages */
	USW_OP_UNSHARE = 3, /* MADV_POPULATE_WRITE the runs: take over pages shared since a fork */
};

/** A contiguous run of pages. Slots of one run are contiguous too and never wrap around. */
struct usw_run {
	uint64_t address;
	uint32_t page_count;
	uint32_t slot;
};

/**
 * One command at a time: the agent fills it, then stores posted_seq (release); hands takes it, works,
 * fills the results, then stores done_seq = posted_seq (release).
 *
 * To take it is to change open_seq from posted_seq by compare-and-swap. The agent does the same to
 * withdraw a command from a hands that does not run, because it is frozen, stopped, or gone: then
 * nothing was moved, and nothing will be. Hands answers what it could not take like any other, with
 * ECANCELED, and by that is known to run again.
 *
 * The gate keeps MOVE and the reading of events apart. An unmap (or any other change of layout)
 * lets its thread go on at the moment its event is read, and a new mapping may then appear at the
 * same addresses; a MOVE planned before must not touch it. So hands moves only while it holds
 * the gate and only if `epoch` still is the command's; the fault thread reads messages only while
 * it holds the gate and raises `epoch` before it lets go if an event was among them. Whoever
 * enters sets its own flag, then looks at the other's (both sequentially consistent); hands
 * yields to the agent.
 */
struct usw_ring {
	/* Written by the agent. */
	uint32_t posted_seq __attribute__((aligned(64)));
	uint32_t op;
	uint32_t run_count;
	uint32_t page_count; /* sum over the runs; page i of the batch is staged at i * 4 KiB */
	uint32_t command_epoch;
	uint32_t prepare;       /* the slots' memory may not be there yet: ask for it first */
	uint32_t agent_waiting; /* agent sleeps on done_seq: FUTEX_WAKE it (shared futex) */
	uint32_t open_seq;      /* posted_seq: not taken yet, nor withdrawn; written by both */

	/* Written by hands. */
	uint32_t done_seq __attribute__((aligned(64)));
	uint32_t hands_sleeping; /* hands sleeps (or is about to) in read(): ring the bell */
	int32_t error;           /* last errno met, positive; 0 if every page went */
	uint32_t hands_pid;      /* gettid() in hands' own namespace, 0 until it runs */
	uint64_t moved[USW_BATCH_PAGES_MAX / 64]; /* bit i: page i of the batch is in its slot */

	/* The gate. */
	uint32_t gate_agent __attribute__((aligned(64)));
	uint32_t epoch;
	uint32_t gate_hands __attribute__((aligned(64)));

	struct usw_run runs[USW_BATCH_RUNS_MAX] __attribute__((aligned(64)));
};

_Static_assert(sizeof(struct usw_ring) <= USW_RING_BYTES, "ring fits its mapping");

#endif /* USW_WIRE_H */
