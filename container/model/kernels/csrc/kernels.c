/* The compiled kernels: see cpu.py.
 *
 * Numbers are bfloat16 or float32 in memory and float32 in registers. It is compiled once for each
 * instruction set. Sizes that run in vectors are multiples of LANES; cpu.py checks that. No row's
 * result depends on another row, nor on which thread computes it.
 */

#include "decoder.h"
#include "encoder.h"

/* Which source this was compiled from: see build.py. */
const char *source_hash(void) { return SOURCE_HASH; }
