// SPDX-License-Identifier: MIT

/**
 * @file
 * Streams of faults. See stream.h.
 */

#include "stream.h"

/* A fault this far from a stream's last one may belong to it. */
#define USW_NEAR_PAGES 256
/* Votes that make a stride believed in, and the most that are counted: how fast it is forgotten. */
#define USW_VOTES_TRUSTED 2
#define USW_VOTES_MAX 4
#define USW_WINDOW_FIRST 4u

static uint64_t distance(uint64_t a, uint64_t b)
{
	return a > b ? a - b : b - a;
}

/** Where the next fault falls if all of the window is walked through. */
static uint64_t trip_wire(const struct usw_stream *stream)
{
	return stream->page + (uint64_t)(stream->stride * ((int64_t)stream->window + 1));
}

/**
 * The stream a fault belongs to: one that waits for this page, else the nearest; NULL: none. Most
 * faults at random belong to none, and are compared with all: without a branch that could be
 * mispredicted.
 */
static struct usw_stream *find(struct usw_streams *streams, uint32_t thread_id, uint64_t page)
{
	uint64_t best = USW_NEAR_PAGES + 2;
	uint32_t found = 0;

	for (uint32_t i = 0; i < USW_STREAMS_MAX; i++) {
		const struct usw_stream *stream = &streams->at[i];
		uint64_t rank = distance(stream->page, page) + 1;

		rank = stream->window && trip_wire(stream) == page ? 0 : rank;
		rank = stream->thread_id == thread_id ? rank : UINT64_MAX;
		found = rank < best ? i : found;
		best = rank < best ? rank : best;
	}
	return best < USW_NEAR_PAGES + 2 ? &streams->at[found] : NULL;
}

/** The entry to give up: one that was never a stream if there is one, else the oldest. */
static struct usw_stream *replaceable(struct usw_streams *streams)
{
	uint64_t worst = 0;
	uint32_t found = 0;

	for (uint32_t i = 0; i < USW_STREAMS_MAX; i++) {
		const struct usw_stream *stream = &streams->at[i];
		uint64_t rank = (uint64_t)(stream->votes < USW_VOTES_TRUSTED) << 32 |
				(streams->clock - stream->used);

		found = rank > worst ? i : found;
		worst = rank > worst ? rank : worst;
	}
	return &streams->at[found];
}

static void vote(struct usw_stream *stream, int64_t delta)
{
	if (delta == stream->stride) {
		stream->votes += stream->votes < USW_VOTES_MAX;
	} else if (stream->votes > 0) {
		stream->votes--;
	} else {
		stream->stride = delta;
		stream->votes = 1;
	}
}

struct usw_forecast usw_streams_note(struct usw_streams *streams, uint32_t thread_id, uint64_t page)
{
	struct usw_stream *stream = find(streams, thread_id, page);
	uint32_t proven = 0;

	streams->clock++;
	if (!stream) {
		stream = replaceable(streams);
		*stream = (struct usw_stream){
			.thread_id = thread_id, .page = page, .used = streams->clock};
		return (struct usw_forecast){0};
	}
	stream->used = streams->clock;
	if (stream->page == page) // the same fault again: it could not be answered at once
		return (struct usw_forecast){.stride = stream->stride, .window = stream->window};

	if (stream->window && trip_wire(stream) == page) {
		proven = stream->window;
		stream->votes = USW_VOTES_MAX;
		stream->window = (uint32_t)usw_min(stream->window * 2u, USW_STREAM_WINDOW_MAX);
	} else {
		// A page of the window may have been pushed out again, or the walk has ended.
		vote(stream, (int64_t)(page - stream->page));
		stream->window /= 4;
		if (stream->votes >= USW_VOTES_TRUSTED && !stream->window)
			stream->window = USW_WINDOW_FIRST;
	}
	if (stream->votes < USW_VOTES_TRUSTED)
		stream->window = 0;
	stream->page = page;
	return (struct usw_forecast){
		.stride = stream->stride, .window = stream->window, .proven = proven};
}
