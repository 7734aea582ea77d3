package interop;

/** One thing that the client and the cluster should do together. */
@FunctionalInterface
interface Case {
    /**
     * Does it.
     *
     * @return what was seen, in a few words
     * @throws NotInClientException this version of the client cannot do it
     * @throws Exception it did not work
     */
    String run(Context context) throws Exception;
}
