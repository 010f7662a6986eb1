/* SPDX-License-Identifier: MIT */

/**
 * @file
 * Packing: while RAM is tight, the coldest segments are compressed denser.
 *
 * An object that nobody has asked for in a long time is worth more work: with zstd it takes two
 * thirds of the bytes that it takes with LZ4, and what that saves is resident memory, or pages that
 * need not go to a disk. The work, some 15 us a page, is done by a thread that runs when no other
 * wants the processor, and for half of the time at the most. It reads one segment, which is not
 * moved, filled or freed meanwhile, and writes a buffer of its own; it holds no lock. The owner
 * then moves the objects one by one as compaction does, some at a time, so that readers, releases
 * and forks go on as if nothing were.
 *
 * Before its first segment the thread makes a dictionary of pages in it, and later another if the
 * last one does not serve the pages that have come since.
 *
 * Where faults never pause the thread gets little, and the owner waits awake: then it packs objects
 * of another segment itself, one at a time. It does so, too, where nothing but packing makes room.
 *
 * Threads: the owner of the segments (the reclaim thread) begins and ends; `stage` says whose the
 * packer is.
 */

#ifndef USW_PACK_H
#define USW_PACK_H

#include <pthread.h>

#include "dense.h"
#include "vswap.h"

/** Objects that are moved at a time: about 50 us. */
#define USW_PACK_STEP_OBJECTS 64u

enum usw_pack_stage {
	USW_PACK_IDLE,
	USW_PACK_ASKED, /* the thread's */
	USW_PACK_DONE,
	USW_PACK_ENDED, /* nobody's: the thread is to end */
};

/** What an object has become. */
struct usw_packed {
	uint32_t id;
	uint32_t offset_bytes; /* in the buffer */
	uint16_t length_bytes; /* 0: it stays as it is */
	uint16_t index;
};

enum usw_pack_need {
	USW_PACK_NOT,
	USW_PACK_COLD, /* what is cold: the youngest segments stay as they are */
	USW_PACK_ALL,  /* nothing else makes room: all that can be, without rest */
};

/** What the owner packs itself. */
struct usw_pack_own {
	struct usw_dense_encoder *encoder; /* NULL: none was needed yet */
	uint32_t segment;                  /* 0: none */
	uint32_t index;                    /* of the next object */
	uint64_t after_ns;                 /* nothing is looked for before */
};

struct usw_packer {
	struct usw_vswap *vswap;
	uint64_t hash_seed;
	void (*done)(void *context);
	void *context;

	pthread_t thread;
	bool is_started;
	bool is_impossible; /* no zstd, memory, thread or segment: not tried again; owner */
	_Atomic bool stopping;
	_Atomic uint32_t stage; /* enum usw_pack_stage; futex */
	struct usw_dense_encoder *encoder;
	_Atomic uint32_t dictionary; /* its number (dictionary.h), 0: none yet; made by the thread */
	bool may_renew;              /* there is time for it; owner, before it asks */
	uint32_t until_renewal;      /* segments before another is made; thread */
	uint32_t renewal_interval;   /* the next time; thread */
	char *bytes;                 /* USW_SEGMENT_BYTES */
	struct usw_packed *objects;  /* USW_SEGMENT_OBJECTS */
	struct usw_pack_own own;     /* owner */
	enum usw_pack_need need;     /* as the owner was last told */
	uint32_t segment;            /* 0: none */
	uint32_t count;
	uint32_t moved;      /* of them; owner */
	uint64_t busy_ns;    /* of processor time, for the last segment */
	_Atomic uint32_t at; /* the entry that the thread has come to */
	uint32_t seen_at;    /* as the owner last saw it, and when; owner */
	uint64_t seen_ns;
	uint64_t after_ns;             /* the next is not begun before; owner */
	_Atomic uint64_t packed_pages; /* so far */
};

/** `done` is called by the thread and must not wait. */
void usw_packer_init(struct usw_packer *packer, struct usw_vswap *vswap, uint64_t hash_seed,
		     void (*done)(void *context), void *context);
/** Ends the thread, which may be at work on an object. */
void usw_packer_deinit(struct usw_packer *packer);

/**
 * Move some of what is packed, or begin with another segment. Owner only; never waits. True if it
 * has more to do, now.
 */
bool usw_pack_step(struct usw_packer *packer, enum usw_pack_need need);

/** How a page that leaves now is to be compressed: see usw_compressor_compress(). Owner only. */
uint32_t usw_pack_density(const struct usw_packer *packer);

/**
 * True if a segment is being packed, and the thread, which may not be getting a processor, has come on
 * within the last second. Owner only.
 */
bool usw_pack_is_hopeful(struct usw_packer *packer);

/**
 * Pack one object on this thread, of what usw_pack_step() was last told is needed: some 20 us, for an
 * owner that would wait awake. False if there is none. Owner only.
 */
bool usw_pack_one(struct usw_packer *packer);

/** What usw_pack_step() is made of, for tests, which pack on their own thread. */
int usw_pack_prepare(struct usw_packer *packer);
void usw_pack_segment(struct usw_packer *packer);
bool usw_pack_move_some(struct usw_packer *packer);

#endif /* USW_PACK_H */
