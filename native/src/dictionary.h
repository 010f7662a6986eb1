/* SPDX-License-Identifier: MIT */

/**
 * @file
 * Dictionaries of the denser codec (dense.h): what many pages have in common, said once.
 *
 * A page that is compressed alone has to say everything anew. A dictionary made of some hundred of
 * the pages themselves, a piece of each, holds strings that come again, and how often which byte
 * comes: pages take a fifth to a quarter less with it, if they are text or rows, and are read and
 * written faster, if they are not. Choosing the pieces well (zstd's trainer) gains nothing, and takes
 * 50 ms and 12 MiB instead of 2 ms and 1 MiB (docs/internals/codec.md).
 *
 * A dictionary has a number, never changes and stays until the process ends: an object may need it
 * for as long as it lives, and a reader that finds an object while it is overwritten may ask for any.
 *
 * Any thread, no lock.
 */

#ifndef USW_DICTIONARY_H
#define USW_DICTIONARY_H

#include "base.h"

/** Numbers are 1 to this; 0 is none. */
#define USW_DICTIONARIES_MAX 31u
/** Pages to make one of: more take longer and make none that is better. */
#define USW_DICTIONARY_PAGES 128u

struct ZSTD_CDict_s;
struct ZSTD_DDict_s;

/**
 * Make a dictionary of pages that lie one behind the other, as the compressor is to see them.
 * Returns its number; 0: they are too few or too many, there is no memory, or there are no numbers left.
 */
uint32_t usw_dictionary_make(const void *pages, uint32_t page_count);

/** What compresses with a dictionary that there is. */
const struct ZSTD_CDict_s *usw_dictionary_compressor(uint32_t number);

/** What decompresses; NULL: there is no such dictionary. */
const struct ZSTD_DDict_s *usw_dictionary_decompressor(uint32_t number);

#endif /* USW_DICTIONARY_H */
